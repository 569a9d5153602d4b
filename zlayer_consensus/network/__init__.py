"""Network contracts, the wire codec, the HTTP client and the HTTP service."""
