"""Independent jobs: run here, in processes or on a Dask scheduler; results kept under a hash."""
