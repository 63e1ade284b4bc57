"""HTTP/1.1 as both listeners speak it."""
