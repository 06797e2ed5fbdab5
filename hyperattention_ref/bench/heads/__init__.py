"""The command `bench-heads`: the time that each recipe takes to reach an error on real heads."""
