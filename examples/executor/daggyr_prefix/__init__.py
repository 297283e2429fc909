"""An executor from outside DaggyR: it runs each attempt on the server's own host, through a command that the pool names."""
