"""What `benchmarks.queries` is made of: data, databases, servers, operations and the report."""
