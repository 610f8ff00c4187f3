"""The server's reports to its operators: logs, metrics, traces."""
