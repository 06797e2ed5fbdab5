"""What the commands compute and show: surveys of real heads, tables, plots and pages. Needs the extra `report`."""
