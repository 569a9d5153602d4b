"""Storage contracts, and the memory and file backends."""
