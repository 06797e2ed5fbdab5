"""The commands about backends: `backends`, `warmup`, `check-backend`. Needs the extra `report`."""
