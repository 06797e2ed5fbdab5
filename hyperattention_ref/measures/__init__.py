"""What can be measured of a head: hardness, norms, errors, exactly or from drawn rows."""
