"""What pipelines and training share: storage, the data contract, configuration and tracking."""
