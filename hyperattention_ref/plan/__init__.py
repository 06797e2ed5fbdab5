"""Plans: every discrete decision of an attention call, and the recipes that make them."""
