"""What the pages and tables of all commands share: files, wording, plot style, progress. Needs the extra `report`."""
