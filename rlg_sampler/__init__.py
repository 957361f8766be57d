"""How Reinforcement Learning Guidance works: no node schema, no file dialogs, no UI."""
