"""The typed configuration: YAML, then `--set a.b=c`, validated once. No torch here.

Every section refuses unknown keys. The docstring under a field is its documentation.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pipeline.common.numbers import divisors
from pipeline.config.kinds import Folder, Number, Positive, Share, Weight, Whole, number_as_text, yaml_no

LAYERS = ("conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1")
"""The layers of the perceptual network whose features are compared, docs/method.md, eq. 4 and 5."""
STYLE_LAYERS, CONTENT_LAYERS = LAYERS[:3], LAYERS[3:]

Norm = Literal["batch", "layer", "none"]
Blocks = Literal["plain", "residual"]
Arch = Literal["vgg19", "vgg16"]
Tracker = Literal["tensorboard", "wandb", "trackio", "comet_ml", "aim", "mlflow", "clearml", "dvclive", "swanlab"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class DataConfig(Section):
    source: str | None = None
    """What `run` shards: `synth` for painted faces, or img_align_celeba.zip, its folder, or any folder of images."""
    synth_count: Positive = 2000
    """Faces to paint where `source` is `synth`."""
    split: Annotated[str, BeforeValidator(number_as_text)] = "auto"
    """How `run` splits `source`: `paper` (the last 2,599 images are the test split), `official` (CelebA's partition
    file), the fraction that becomes the test split, or `auto`: `paper` from 20,000 images on, else 0.1."""
    max_rejected: Annotated[Whole, Field(ge=0)] = 0
    """Unreadable images that `run` may leave out of the shards before it stops."""
    shards: Folder | None = None
    """Folder with `train/` and `test/`; null: `shards` inside `run_dir`."""
    image_size: Positive = 128
    """Side of the square images in pixels: a power of two, 32 or more."""
    crop: Positive | None = None
    """Side in pixels of the centre crop before resizing; null: the largest square (178 for CelebA)."""
    horizontal_flip: bool = True
    """Mirror every training image with probability 1/2."""
    workers: Annotated[Whole, Field(ge=0, le=1024)] = 4
    """Loader processes per rank; 0 decodes in the training process."""
    max_bad_samples: Annotated[Whole, Field(ge=0)] = 0
    """Unreadable images each rank may replace with the next one before stopping."""
    stream: str | None = None
    """Train from tars that are read in sequence, for data larger than a disk: `pipe:`, `s3://` or `http://` URLs, with
    ranges as {000..199}. Such a run is not exactly resumable."""

    @model_validator(mode="after")
    def _power_of_two(self) -> "DataConfig":
        if not 32 <= self.image_size <= 4096 or self.image_size & (self.image_size - 1):
            raise ValueError(f"image_size: {self.image_size} is not a power of two from 32 to 4096; try 64, 128 or 256")
        if self.stream is not None and self.source is not None:
            raise ValueError("stream: trains from tars as they are; leave out data.source, or shard it first")
        return self


class ModelConfig(Section):
    base_channels: Annotated[Whole, Field(ge=1, le=1024)] = 64
    """Channels of the first block; the latent has 16 times as many."""
    kernel_size: Literal[4, 5] = 4
    """Kernel of every convolution."""
    elements: Positive = 5
    """Number N of latent elements."""
    blocks: Blocks = "plain"
    """Blocks of encoder and generator: `plain` as in the paper, or `residual`, with a shortcut past each block."""
    norm: Norm = "batch"
    """Normalisation in encoder and generator: `batch` as in the paper; `residual` blocks do better with `none`."""
    structure: Literal["channels", "pyramid"] = "channels"
    """What an element is (docs/method.md). `channels`: a group of them, the paper's. `pyramid`: groups of
    channels, of which 5 draws the layout and 4 the detail; 2 and 3 set their contrast, 1 the level."""
    warp: bool = False
    """Only with `pyramid`: element 5 also moves the pixels of the drawn face."""
    preserve_norm: bool = False
    """Only with `pyramid`: the elements of a mix are as far from the mean face as those of its two faces."""
    discriminator_norm: Norm = "layer"
    """Normalisation in the discriminator: `batch` as in the paper; with `layer`, GroupNorm(1, C), the gradient penalty
    of an image depends on that image alone."""
    discriminator_output_gain: Annotated[Number, Field(gt=0)] = 0.05
    """Factor on the initial weights of the discriminator's last layer: 1 as in the paper; 0.05 keeps the first gradient
    penalty small, so that it goes on learning."""

    @model_validator(mode="after")
    def _element_fits(self) -> "ModelConfig":
        if self.elements > 16 * self.base_channels:
            raise ValueError(f"elements: {self.elements} is more than the latent's {16 * self.base_channels} channels")
        if self.structure != "channels" and self.elements != 5:
            raise ValueError(f"elements: {self.elements} with structure {self.structure}, which has 5 elements")
        if self.structure != "pyramid" and (self.warp or self.preserve_norm):
            raise ValueError(f"{'warp' if self.warp else 'preserve_norm'}: needs structure pyramid")
        return self


class PerceptualConfig(Section):
    arch: Arch = "vgg19"
    """Architecture of the perceptual network; the paper has `vgg19`."""
    weights: str = "imagenet"
    """`imagenet` (torchvision's, from torch's cache), a .safetensors file, or `random` (for demos and tests)."""
    feature_scale: Literal["oxford", "unit", "none"] = "unit"
    """What the features of each layer are scaled to on real faces: the RMS of Oxford's network (the paper's weights fit
    it), an RMS of 1, or nothing (docs/method.md)."""
    layer_weights: tuple[Weight, Weight, Weight, Weight, Weight] = (1, 1, 1, 1, 1)
    """Weights of conv1_1 .. conv5_1 within the style and the content term; 1 each as in the paper."""
    images: Positive | None = None
    """Fused images of each micro-batch whose features are compared, the first ones; null: all. It takes most of a CPU's
    time."""


class PenaltyConfig(Section):
    k: Weight = 2.0
    """Factor of the gradient penalty."""
    p: Annotated[Number, Field(ge=2)] = 6.0
    """Power of the gradient's norm; under 2 its second derivative would be infinite at 0."""
    points: Literal["interpolate", "endpoints"] = "interpolate"
    """Where the discriminator's gradient is penalised: between a real and a fused image, or at both."""
    every: Positive = 1
    """Steps from one penalty to the next; each is then `every` times as heavy, so that less work has the same mean."""


class LambdaMixture(Section):
    """Shares of the ways in which a training Lambda is drawn; they add up to 1."""

    endpoints: Share = 0.2
    """All ones or all zeros."""
    coin_flips: Share = 0.3
    """Every element 0 or 1 independently."""
    single: Share = 0.2
    """One element differs from all others."""
    uniform: Share = 0.3
    """Every element uniform in [0, 1]."""
    spatial: Share = 0.0
    """Ones in a random rectangle, a half or a part of the face on the latent grid and zeros outside, or the reverse."""

    equal: Share = 0.0
    """All elements mixed alike, by anything from 0.15 to 0.85: what a strip shows between its ends."""

    @model_validator(mode="after")
    def _adds_up(self) -> "LambdaMixture":
        total = sum(self.model_dump().values())
        if abs(total - 1) > 1e-6:
            raise ValueError(f"*: the shares add up to {total:g}; they must add up to 1")
        return self


class FusionConfig(Section):
    reading: Literal["layerwise", "shared", "map"] = "layerwise"
    """Which lambda a perceptual layer follows: its own element's, one for all, or a row-weighted `map`."""
    map: list[list[Share]] | None = None
    """For `map`: an elements x 5 matrix; column l says how the elements share layer l (conv1_1 .. conv5_1)."""
    mixture: LambdaMixture = LambdaMixture()
    targets: Literal["mixed", "ends"] = "mixed"
    """What content and style ask of a layer between 0 and 1: `mixed`, distances to A and B weighted by lambda; `ends`:
    nothing, as these terms are defined at 0 and 1 only (docs/method.md, eq. 4 and 5)."""
    critic: Literal["images", "latents"] = "images"
    """What the discriminator compares: fused images with photographs, as in the paper; or mixed latents with those of
    photographs, so that E learns a code in which a mix of two faces is that of a face."""


class LossWeights(Section):
    """Weights of the loss terms: w1 .. w5 of docs/method.md, eq. 11, and `ssim`, which is not the paper's.

    The weights of content and style belong to one `perceptual.feature_scale`.
    """

    adversarial: Weight = 1.0
    """w1, of eq. 2."""
    content: Weight = 3.0
    """w2, of eq. 4."""
    style: Weight = 5e4
    """w3, of eq. 5."""
    reconstruction: Weight = 30.0
    """w4, of eq. 7."""
    total_variation: Weight = 1.0
    """w5, of eq. 9."""
    ssim: Weight = 0.0
    """Weight of 1 - SSIM of the reconstructions; in pre-training it is divided by `reconstruction`. Not the paper's."""


class OptimizerConfig(Section):
    """Adam, in both stages. With a small beta2 the discriminator goes on learning after its first, large penalties."""

    learning_rate: Annotated[Number, Field(gt=0)] = 2e-4
    """Of the fusion training, and of pre-training where that has none of its own."""
    pretrain_learning_rate: Annotated[Number, Field(gt=0)] | None = None
    """Of pre-training; null: `learning_rate`."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Of the learning rate within each stage: `cosine` lets it fall to 0 at the last step."""
    beta1: Annotated[Number, Field(ge=0, lt=1)] = 0.5
    """Decay of Adam's mean of gradients."""
    beta2: Annotated[Number, Field(ge=0, lt=1)] = 0.9
    """Decay of Adam's mean of squared gradients."""
    fused: bool = True
    """Use torch's fused Adam: the same numbers up to rounding, several times as fast."""


class SpeedConfig(Section):
    """What makes training faster and changes its numbers by rounding only. See also `optimizer.fused`."""

    channels_last: bool | None = None
    """Channels innermost, as tensor cores want them; null: on GPUs, and on CPUs in P alone (D's penalty loses)."""
    tf32: bool = True
    """Let tensor cores round the factors of float32 products to 10 bits, where the GPU can (not a V100)."""
    cudnn_benchmark: bool = True
    """Try the convolution algorithms once and keep the fastest; a resumed run may then choose another."""
    keep_freed_memory: bool = True
    """On CPUs, with glibc: reuse the memory of freed tensors instead of asking the system for new pages each time."""
    compile: Annotated[Literal["no", "default", "reduce-overhead"], BeforeValidator(yaml_no)] = "no"
    """torch.compile for E, G and P, not D (its penalty is differentiated twice); `reduce-overhead`: CUDA graphs too."""


class TrainingConfig(Section):
    pretrain_steps: Positive = 20_000
    """Optimizer steps of pre-training."""
    fusion_steps: Positive = 100_000
    """Optimizer steps of the fusion training."""
    global_batch_size: Annotated[Whole, Field(ge=2, le=2**20)] = 128
    """Images per optimizer step over all ranks: ranks x accumulation x micro_batch_size."""
    micro_batch_size: Annotated[Whole, Field(ge=2, le=2**20)] = 16
    """Images per forward pass; pairs and BatchNorm statistics are formed inside it, so results depend on it."""
    latent_noise: Weight = 0.0
    """Noise on the latents in both stages, in shares of their norm; with `pyramid` on elements 4 and 5. Nothing that G
    needs can then hide in directions of the latent in which faces hardly differ."""
    mixed_precision: Annotated[Literal["no", "fp16", "bf16"] | None, BeforeValidator(yaml_no)] = None
    """null: what `accelerate launch` says, else none."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; `auto`: on GPUs where there are any."""
    ema_decay: Annotated[Number, Field(ge=0, lt=1)] = 0.999
    """Exponential moving average of E and G, which is what gets exported; 0 switches it off."""
    max_skipped_steps: Positive = 20
    """Optimizer steps in a row that may be skipped for a non-finite gradient before the run stops."""

    @model_validator(mode="after")
    def _divides(self) -> "TrainingConfig":
        size, micro = self.global_batch_size, self.micro_batch_size
        if size % micro:
            do = ", ".join(map(str, divisors(size)[1:]))
            raise ValueError(f"micro_batch_size: {micro} does not divide global_batch_size {size}; these do: {do}")
        return self


class TrackingConfig(Section):
    trackers: list[Tracker] = ["tensorboard"]
    """Where numbers go: accelerate's trackers. Pictures go to TensorBoard and wandb; [] shows lines alone."""
    log_every: Positive = 50
    """Steps between two log lines; the terms logged are means over these steps."""
    image_every: Positive = 1000
    """Steps between two looks at held-out faces: measures and pictures, docs/tensorboard.md."""
    checkpoint_every: Positive = 1000
    """Steps from one checkpoint to the next."""
    asynchronous_saves: bool = True
    """Write checkpoints while training goes on; a step waits only until the weights are copied to host memory."""
    keep_checkpoints: Annotated[Whole, Field(ge=2)] = 3
    """Checkpoints of a stage that are kept, the newest."""


class EvaluationConfig(Section):
    """Pairs are of test images; where there are fewer, all are taken. See docs/evaluation.md."""

    faces: Annotated[Whole, Field(ge=2)] | None = None
    """Test images that are measured; null: all."""
    pairs: Positive = 128
    """Pairs behind the effect matrix, exactness, regions and paths measured in pixels."""
    corner_pairs: Annotated[Whole, Field(ge=0)] = 12
    """Pairs behind Shapley values and perceptual paths, which take 94 images each; 0 leaves both out."""
    half_way_pairs: Positive = 1000
    """Pairs fused at lambda = 0.25, 0.5 and 0.75: realism, detectability and pose."""
    train_images: Positive = 1000
    """Training images that realism compares with."""
    classifier_faces: Annotated[Whole, Field(ge=4)] = 1680
    """Training images that detectability's classifiers learn from."""
    batch_size: Annotated[Whole, Field(ge=2)] = 32
    """Images that are measured at a time."""
    seed: Annotated[Whole, Field(ge=0, lt=2**32)] = 0
    """Of the pairs and of the bootstrap: bundles are compared on the same ones."""


class Config(Section):
    seed: Annotated[Whole, Field(ge=0, lt=2**32)] = 0
    """Of the initial weights, the order of the images and every random draw of training."""
    run_dir: Folder = Path("runs/default")
    """Everything a run writes goes here: checkpoints, TensorBoard events, bundle, evaluation."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    perceptual: PerceptualConfig = PerceptualConfig()
    penalty: PenaltyConfig = PenaltyConfig()
    fusion: FusionConfig = FusionConfig()
    loss_weights: LossWeights = LossWeights()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    speed: SpeedConfig = SpeedConfig()
    tracking: TrackingConfig = TrackingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _reading_fits(self) -> "Config":
        reading, matrix, elements = self.fusion.reading, self.fusion.map, self.model.elements
        if reading == "layerwise" and elements != len(LAYERS):
            raise ValueError(f"fusion.reading: layerwise needs model.elements = {len(LAYERS)}, not {elements}; try map")
        if self.loss_weights.ssim and not self.loss_weights.reconstruction:
            raise ValueError("loss_weights.ssim: needs loss_weights.reconstruction above 0, beside which it weighs")
        if (reading == "map") != (matrix is not None):
            raise ValueError("fusion.map: is given if and only if fusion.reading is `map`")
        if matrix is not None:
            if len(matrix) != elements or any(len(row) != len(LAYERS) for row in matrix):
                raise ValueError(f"fusion.map: must have {elements} rows (elements) of {len(LAYERS)} numbers (layers)")
            if any(abs(sum(column) - 1) > 1e-6 for column in zip(*matrix, strict=True)):
                raise ValueError("fusion.map: every column must add up to 1")
        return self

    @property
    def shards_dir(self) -> Path:
        return self.data.shards or self.run_dir / "shards"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as YAML and JSON hold them."""
        return self.model_dump(mode="json")
