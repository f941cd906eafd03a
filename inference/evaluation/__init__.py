"""StageBench: left and right measured against known positions."""
