"""Measures that need a trained network: faces, aesthetics, nudity, watermarks. All optional, their weights given by path, nothing fetched.

A network that is not configured leaves its columns null. `prepare` shrinks a picture to what a network looks at, in a thread;
`judge` takes many at a time. What is measured of a picture does not depend on the others in its batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from pipelines.stages.measures.tiles import rounded

FACE_SIDE_PX = 1024  # choice: the longer side that the detector sees; YuNet finds faces of 10 px and more
FACE_OVERLAP = 0.3  # OpenCV's default of the non-maximum suppression
MODEL_MEASURES = ("face_count", "face_px", "aesthetic", "nsfw", "watermark")


@dataclass(frozen=True, kw_only=True)
class ImageModels:
    """Where the weights lie; None: not measured. The hashes of the files decide what comes out, their places do not.

    `faces`: an ONNX file of OpenCV's FaceDetectorYN (YuNet). `aesthetic`: a folder with a CLIP vision model (transformers' layout) and
    `aesthetic_head` a file with linear layers on its embedding (LAION's improved-aesthetic-predictor, .safetensors or .pth).
    `embedding`: a folder with a CLIP vision model, for semantic duplicates. `nsfw`, `watermark`: folders with an image classifier
    (transformers' layout), and the label of theirs that is meant.
    """

    faces: str | None = field(default=None, metadata={"result": False})
    face_confidence: float = 0.8  # choice: below, hands and patterns count as faces (OpenCV's example uses 0.9)
    aesthetic: str | None = field(default=None, metadata={"result": False})
    aesthetic_head: str | None = field(default=None, metadata={"result": False})
    embedding: str | None = field(default=None, metadata={"result": False})
    nsfw: str | None = field(default=None, metadata={"result": False})
    nsfw_label: str = "nsfw"
    watermark: str | None = field(default=None, metadata={"result": False})
    watermark_label: str = "watermark"
    device: str = field(default="auto", metadata={"result": False})
    hashes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.aesthetic) != bool(self.aesthetic_head):
            raise ValueError("models.aesthetic (a folder with CLIP) and models.aesthetic_head (a file) work together: set both or none")

    def identified(self) -> ImageModels:
        """With the hashes of the files. Raises ValueError where one is missing."""
        names = ("faces", "aesthetic", "aesthetic_head", "embedding", "nsfw", "watermark")
        places = {name: getattr(self, name) for name in names}
        return replace(self, hashes=tuple(f"{name} {_hash(place)}" for name, place in places.items() if place))

    def build(self) -> list[Judge]:
        """What is configured, loaded."""
        device = self._device() if self.aesthetic or self.embedding or self.nsfw or self.watermark else "cpu"
        judges: list[Judge] = []
        if self.faces:
            judges.append(Faces(self.faces, self.face_confidence))
        if self.aesthetic and self.aesthetic_head:
            judges.append(Aesthetic(self.aesthetic, self.aesthetic_head, device))
        if self.embedding:
            judges.append(Embedding(self.embedding, device))
        if self.nsfw:
            judges.append(Classifier("nsfw", self.nsfw, self.nsfw_label, device))
        if self.watermark:
            judges.append(Classifier("watermark", self.watermark, self.watermark_label, device))
        return judges

    def _device(self) -> str:
        import torch

        return ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device


class Judge(Protocol):
    """A network that measures pictures."""

    def prepare(self, rgb_HWC: NDArray[Any]) -> Any:
        """What the network looks at. Called in threads."""
        ...

    def judge(self, prepared: Sequence[Any]) -> Sequence[Mapping[str, float | bytes]]:
        """Column -> value, for each."""
        ...


class Faces:
    """`face_count`, and `face_px`: the shorter side of the largest face's box, in pixels of the picture; 0 for none."""

    def __init__(self, path: str, confidence: float) -> None:
        import cv2

        try:
            self._detector = cv2.FaceDetectorYN.create(str(_local_file(path)), "", (320, 320), confidence, FACE_OVERLAP)
        except cv2.error as error:
            raise ValueError(f"models.faces: {path} is no ONNX file of OpenCV's FaceDetectorYN ({str(error).strip()[:120]})") from error

    def prepare(self, rgb_HWC: NDArray[Any]) -> tuple[NDArray[Any], float]:
        """BGR with a longer side of at most FACE_SIDE_PX, and the scale."""
        import cv2

        height, width = rgb_HWC.shape[:2]
        scale = min(FACE_SIDE_PX / max(height, width), 1.0)
        size = (max(round(width * scale), 1), max(round(height * scale), 1))
        return cv2.cvtColor(cv2.resize(rgb_HWC, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2BGR), scale

    def judge(self, prepared: Sequence[Any]) -> list[dict[str, float]]:
        """One after the other."""
        return [largest_face(self._detect(bgr_HWC), scale) for bgr_HWC, scale in prepared]

    def _detect(self, bgr_HWC: NDArray[Any]) -> NDArray[Any] | None:
        self._detector.setInputSize((bgr_HWC.shape[1], bgr_HWC.shape[0]))
        found: NDArray[Any] | None = self._detector.detect(bgr_HWC)[1]
        return found


def largest_face(found: NDArray[Any] | None, scale: float) -> dict[str, float]:
    """Columns of FaceDetectorYN's rows (x, y, width, height, landmarks, confidence) of a picture that was shrunk by `scale`."""
    if found is None or len(found) == 0:
        return {"face_count": 0, "face_px": 0.0}
    return {"face_count": len(found), "face_px": rounded(found[:, 2:4].min(axis=1).max() / scale)}


class Classifier:
    """The probability of one label of an image classifier."""

    def __init__(self, column: str, folder: str, label: str, device: str) -> None:
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        from pipelines.stages.weights import local_folder

        place = local_folder(folder)
        self._column, self._device = column, device
        self._processor = AutoImageProcessor.from_pretrained(place, local_files_only=True, backend="pil")
        self._network = AutoModelForImageClassification.from_pretrained(place, local_files_only=True).to(device).eval()
        labels = {name.lower(): index for index, name in self._network.config.id2label.items()}
        if label.lower() not in labels:
            raise ValueError(f"models.{column}: {folder} knows the labels {', '.join(labels)}, not {label!r}: set models.{column}_label")
        self._index = int(labels[label.lower()])

    def prepare(self, rgb_HWC: NDArray[Any]) -> Any:
        """As its own processor does."""
        return self._processor(images=[rgb_HWC], return_tensors="pt", input_data_format="channels_last")["pixel_values"][0]

    def judge(self, prepared: Sequence[Any]) -> list[dict[str, float]]:
        """Softmax over its labels."""
        import torch

        with torch.no_grad():
            logits = self._network(pixel_values=torch.stack(list(prepared)).to(self._device)).logits
        return [{self._column: rounded(one)} for one in logits.float().softmax(dim=-1)[:, self._index].tolist()]


class Embedding:
    """The CLIP embedding of a picture, of length 1."""

    def __init__(self, folder: str, device: str) -> None:
        from transformers import AutoImageProcessor, CLIPVisionModelWithProjection

        from pipelines.stages.weights import local_folder

        place = local_folder(folder)
        self._device = device
        self._processor = AutoImageProcessor.from_pretrained(place, local_files_only=True, backend="pil")
        network: Any = CLIPVisionModelWithProjection.from_pretrained(place, local_files_only=True)
        self._network = network.to(device).eval()

    def prepare(self, rgb_HWC: NDArray[Any]) -> Any:
        """As CLIP's own processor does."""
        return self._processor(images=[rgb_HWC], return_tensors="pt", input_data_format="channels_last")["pixel_values"][0]

    def embed(self, prepared: Sequence[Any]) -> Any:
        """float32 (pictures, dimensions)."""
        import torch

        with torch.no_grad():
            x_BD = self._network(pixel_values=torch.stack(list(prepared)).to(self._device)).image_embeds.float()
            return x_BD / x_BD.norm(dim=-1, keepdim=True)

    def judge(self, prepared: Sequence[Any]) -> Sequence[Mapping[str, float | bytes]]:
        """float16, as bytes."""
        return [{"embedding": one.tobytes()} for one in self.embed(prepared).half().cpu().numpy()]


class Aesthetic(Embedding):
    """A score of about 1 to 10: linear layers on the embedding."""

    def __init__(self, folder: str, head: str, device: str) -> None:
        super().__init__(folder, device)
        self._layers = [(weight.to(device), bias.to(device)) for weight, bias in linear_layers(head, self._network.config.projection_dim)]

    def judge(self, prepared: Sequence[Any]) -> Sequence[Mapping[str, float | bytes]]:
        """The head's one output."""
        import torch

        with torch.no_grad():
            x_BD = self.embed(prepared)
            for weight, bias in self._layers:
                x_BD = torch.nn.functional.linear(x_BD, weight, bias)
        return [{"aesthetic": rounded(one)} for one in x_BD[:, 0].tolist()]


def linear_layers(path: str, width: int) -> list[tuple[Any, Any]]:
    """(weight, bias) of the head's layers in their order (`layers.0.weight`, `layers.2.weight`, … or one `weight`), float32.

    Raises ValueError if they do not lead from an embedding of `width` to one number.
    """
    import torch
    from safetensors.torch import load_file

    place = str(_local_file(path))
    state = load_file(place) if place.endswith(".safetensors") else torch.load(place, map_location="cpu", weights_only=True)
    names = sorted((name for name in state if name.endswith("weight")), key=lambda name: [int(p) for p in name.split(".") if p.isdigit()])
    layers = [(state[name].float(), state[name.removesuffix("weight") + "bias"].float()) for name in names]
    shapes = [tuple(weight.shape) for weight, _ in layers]
    widths = [width, *(out for out, _ in shapes)]
    if not layers or [into for _, into in shapes] != widths[:-1] or widths[-1] != 1:
        raise ValueError(f"models.aesthetic_head: {path} has layers of shapes {shapes}, expected them to lead from {width} to 1")
    return layers


def _local_file(address: str) -> Path:
    from pipelines.stages.weights import ROOT, looked_from

    for path in (Path(address).expanduser(), ROOT / address):
        if path.is_file():
            return path.resolve()
    raise ValueError(f"no file of weights at {address!r} ({looked_from()}): pass the path of a file that every worker can read")


def _hash(address: str) -> str:
    import hashlib

    from pipelines.stages.weights import folder_identity

    if Path(address).suffix in (".onnx", ".safetensors", ".pth", ".pt"):
        return hashlib.sha256(_local_file(address).read_bytes()).hexdigest()[:16]
    return folder_identity(address)
