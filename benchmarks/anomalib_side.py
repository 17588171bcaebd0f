"""anomalib's side of beside_anomalib.py, with its torch models alone, without Lightning around them."""

import torch
from anomalib.data.utils import read_image
from anomalib.models.components import KCenterGreedy
from anomalib.models.image.draem.torch_model import DiscriminativeSubNetwork, DraemModel, ReconstructiveSubNetwork
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from side import measured, read_task
from torch.nn import functional
from torchvision.transforms.v2 import Compose, Normalize, Resize

task = read_task()
resize = Resize((task["size_px"], task["size_px"]), antialias=True)
normalised = Compose([resize, Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])


@torch.inference_mode()
def score(model: torch.nn.Module, prepare: Compose | Resize) -> None:
    """Score from file to map at the image's size."""
    for path in task["score"]:
        image = read_image(path, as_tensor=True)
        found = model(prepare(image)[None])
        functional.interpolate(found.anomaly_map.view(1, 1, task["size_px"], -1), image.shape[1:], mode="bilinear")


patchcore = PatchcoreModel(layers=("layer2", "layer3"), backbone="resnet18", pre_trained=False).train()
with torch.inference_mode():
    for path in task["train"]:
        patchcore(normalised(read_image(path, as_tensor=True))[None])
    patchcore.subsample_embedding(0.1)
patchcore.eval()
measured(lambda: score(patchcore, normalised))

draem = DraemModel()
draem.reconstructive_subnetwork = ReconstructiveSubNetwork(base_width=task["width"])
draem.discriminative_subnetwork = DiscriminativeSubNetwork(in_channels=6, out_channels=2, base_width=task["width"])
draem.eval()
measured(lambda: score(draem, resize))

features = torch.randn(task["features"], task["channels"])
measured(lambda: KCenterGreedy(features, 0.1).sample_coreset())
