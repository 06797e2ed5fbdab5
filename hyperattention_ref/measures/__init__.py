"""Measures of a head: hardness, norms and errors, exact or estimated from randomly drawn rows."""
