"""A run directory becomes one self-contained HTML page: `page.write_report`."""
