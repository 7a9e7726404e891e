"""The runtime turns a stage into a job: plan pending shards, run them on Ray's actors, commit, publish."""
