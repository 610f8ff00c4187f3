"""How measuring is done: environments, workloads, processes, load."""
