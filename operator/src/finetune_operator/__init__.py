"""The operator: watches FineTuneJobs and runs their stages as Kubernetes Jobs."""
