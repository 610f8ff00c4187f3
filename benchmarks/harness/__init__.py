"""The means of measuring: environments, workloads, processes, load."""
