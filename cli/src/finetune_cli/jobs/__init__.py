"""FineTuneJobs of a cluster: what their objects say, and commands that list and change them."""
