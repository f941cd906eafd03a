"""The presets, as package data: tiny (tests), stage (bundled), base and large (hub encoders)."""
