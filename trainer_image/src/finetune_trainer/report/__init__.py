"""The dataset report: statistics, warnings and the HTML page."""
