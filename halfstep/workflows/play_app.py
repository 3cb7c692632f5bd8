"""The page of `halfstep play`, by Gradio: without telemetry, without sharing."""

import os
from collections.abc import Mapping
from typing import Any, TYPE_CHECKING

from halfstep.errors import ConfigError
from halfstep.extras import needed
from halfstep.workflows.play import draw, on_screen, PlayConfig, PlayNetworks

if TYPE_CHECKING:
    import gradio

QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
SEEDS = 9999
"""The largest seed of the slider."""


def build_app(networks: PlayNetworks) -> "gradio.Blocks":
    """The page as Gradio Blocks: `launch` serves it, and a Hugging Face Space runs it as it is.

    `ConfigError` where Gradio, an extra, is not installed.
    """
    gr = _gradio()
    app: gradio.Blocks
    with gr.Blocks(title=f"{networks.name}: halfstep play", analytics_enabled=False) as app:
        gr.Markdown(
            f"## {networks.name}\nThe teacher and its student, from the same noise. Move a slider."
        )
        with gr.Row():
            pictures = [
                gr.Image(
                    label=label,
                    elem_id=f"{label}-picture",
                    format="png",
                    interactive=False,
                    buttons=["download", "fullscreen"],
                    height=320,
                )
                for label in ("teacher", "student")
            ]
        with gr.Row():
            costs = [
                gr.Textbox(label=f"{label}: cost", elem_id=f"{label}-cost", interactive=False)
                for label in ("teacher", "student")
            ]
        inputs = _inputs(gr, networks)
        names, components = list(inputs), list(inputs.values())

        def show(*values: Any) -> list[Any]:
            return _shown(gr, networks, dict(zip(names, values, strict=True)))

        outputs = [*pictures, *costs]
        events = [app.load, *(component.change for component in components)]
        gr.on(
            events, show, components, outputs, show_progress="minimal", trigger_mode="always_last",
            api_name="draw",
        )  # fmt: skip
    return app


def serve(app: "gradio.Blocks", config: PlayConfig, *, block: bool = True) -> str:
    """Serve the page at the address of the config, and return its URL; blocks until Ctrl-C.

    `ConfigError` where the port is taken.
    """
    gr = _gradio()
    theme = gr.themes.Base(
        primary_hue="emerald", font=["system-ui", "sans-serif"], font_mono=["monospace"]
    )
    try:
        _, url, _ = app.launch(
            server_name=config.host, server_port=config.port or None, share=False, quiet=True,
            theme=theme, ssr_mode=False, mcp_server=False, prevent_thread_lock=not block,
            footer_links=[],
        )  # fmt: skip
    except OSError as error:
        raise ConfigError(
            f"the page cannot be served at {config.host}:{config.port} ({error}): write --port 0 for a "
            "free port"
        ) from None
    return url


def _gradio() -> Any:
    """Gradio, with its telemetry off."""
    os.environ.update(QUIET)
    with needed("play", "for a page to play with", library="gradio"):
        import gradio
    return gradio


def _inputs(gr: Any, networks: PlayNetworks) -> dict[str, Any]:
    """The controls, by the names of `draw`'s arguments."""
    inputs: dict[str, Any] = {}
    if networks.reads_texts:
        inputs["prompt"] = gr.Textbox(label="prompt", elem_id="prompt")
    with gr.Row():
        inputs["seed"] = gr.Slider(0, SEEDS, 0, step=1, label="seed", elem_id="seed")
        if networks.class_names:
            classes = [(name, k) for k, name in enumerate(networks.class_names)]
            inputs["label"] = gr.Dropdown(classes, value=0, label="class", elem_id="class")
    with gr.Row():
        if not networks.teacher.times:
            inputs["teacher_steps"] = gr.Slider(
                1, networks.full, networks.full, step=1, label="steps of the teacher",
                elem_id="teacher-steps",
            )  # fmt: skip
        counts = list(networks.students)
        inputs["steps"] = gr.Radio(
            counts, value=min(counts), label="steps of the student", elem_id="steps"
        )
        if networks.guidance is not None:
            low, high = networks.guidance
            inputs["guidance_scale"] = gr.Slider(
                low, high, low, step=0.1, label="guidance scale", elem_id="guidance"
            )
    return inputs


def _shown(gr: Any, networks: PlayNetworks, values: Mapping[str, Any]) -> list[Any]:
    """Both pictures and both costs."""
    try:
        drawn = draw(networks, **values)
    except ConfigError as error:
        raise gr.Error(str(error)) from None
    return [*(on_screen(one.picture) for one in drawn), *(one.label for one in drawn)]
