"""How a job gets onto machines. Nothing here knows of learning."""
