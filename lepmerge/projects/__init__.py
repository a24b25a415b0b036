"""Projects: a folder with all files of one adaptation, and the chain that runs its commands."""
