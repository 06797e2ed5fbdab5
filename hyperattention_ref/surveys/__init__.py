"""The command `measure`: surveys of real heads, from a file of maps to a page. Needs the extra `report`."""
