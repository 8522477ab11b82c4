"""Where notes come from. A source yields changes in bounded memory, and the state writes that say they were seen."""
