"""What everything stands on: checks at the door, where arrays lie, results, the interface and registry of backends."""
