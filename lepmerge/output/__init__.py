"""Write outputs: the run that owns an output folder, the small files that it copies, provenance, and plots."""
