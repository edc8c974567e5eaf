"""Values that all parts share: services, versions, replicas, and usage counters. No I/O, no parsing."""
