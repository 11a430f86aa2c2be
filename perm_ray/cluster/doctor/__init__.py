"""`perm-ray doctor`: what a run will stand on, looked at before it starts. Nothing here changes anything."""
