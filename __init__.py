"""RLG: Reinforcement Learning Guidance for ComfyUI."""

# Tools that import a repository's root on their own (test collectors) have no package to import from.
if __package__:
    from .nodes import RLGExtension
    from .nodes.page import show_warnings_in_nodes
    from .nodes.saved_schedules import save_with_pictures

    WEB_DIRECTORY = "./web"

    async def comfy_entrypoint() -> RLGExtension:
        """Called by ComfyUI's custom-node loader."""
        save_with_pictures()
        show_warnings_in_nodes()
        return RLGExtension()
