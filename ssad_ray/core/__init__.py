"""Floor 0: records, images, regions, calibration, synthesis and metrics in numpy and OpenCV; no torch, no ray."""
