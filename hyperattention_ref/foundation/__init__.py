"""The base of the library: input checks, host and device memory, results, the interface and registry of backends."""
