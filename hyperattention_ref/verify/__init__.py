"""The command `verify`: the checks of the paper as tables, plots and a page. Needs the extra `report`."""
