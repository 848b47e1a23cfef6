"""What scripts/bench is made of: measuring, the groups that are measured, the tables and the plots."""
