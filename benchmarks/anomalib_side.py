"""anomalib's side of beside_anomalib.py: reads its task as JSON, prints seconds as JSON. Needs anomalib alone."""

import json
import sys
import time

import torch
from anomalib.data.utils import read_image
from anomalib.models.components import KCenterGreedy
from anomalib.models.image.draem.torch_model import DiscriminativeSubNetwork, DraemModel, ReconstructiveSubNetwork
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from torch.nn import functional
from torchvision.transforms.v2 import Compose, Normalize, Resize

task = json.load(sys.stdin)
torch.set_num_threads(task["threads"])
torch.manual_seed(0)
resize = Resize((task["size_px"], task["size_px"]), antialias=True)
normalised = Compose([resize, Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
train, score = task["images"][: task["train"]], task["images"][task["train"] :]


def seconds_per_image(model: torch.nn.Module, prepare: Compose | Resize) -> float:
    """Score from file to map at the image's size."""
    model.eval()
    begun = time.perf_counter()
    with torch.inference_mode():
        for path in score:
            image = read_image(path, as_tensor=True)
            found = model(prepare(image)[None])
            functional.interpolate(found.anomaly_map.view(1, 1, task["size_px"], -1), image.shape[1:], mode="bilinear")
    return (time.perf_counter() - begun) / len(score)


patchcore = PatchcoreModel(layers=("layer2", "layer3"), backbone="resnet18", pre_trained=False).train()
with torch.inference_mode():
    for path in train:
        patchcore(normalised(read_image(path, as_tensor=True))[None])
    patchcore.subsample_embedding(0.1)
figures = {"PatchCore, per image": seconds_per_image(patchcore, normalised)}

draem = DraemModel()
draem.reconstructive_subnetwork = ReconstructiveSubNetwork(base_width=task["width"])
draem.discriminative_subnetwork = DiscriminativeSubNetwork(in_channels=6, out_channels=2, base_width=task["width"])
figures["DRAEM, per image"] = seconds_per_image(draem, resize)

features = torch.randn(task["features"], task["channels"], generator=torch.Generator().manual_seed(0))
begun = time.perf_counter()
KCenterGreedy(features, 0.1).sample_coreset()
figures["coreset"] = time.perf_counter() - begun
print(json.dumps(figures))
