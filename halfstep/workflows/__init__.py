"""One file for each verb, without a terminal: a typed config in, a typed result out, `Progress` beside."""
