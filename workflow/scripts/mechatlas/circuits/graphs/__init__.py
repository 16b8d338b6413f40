"""Attribution graphs: which features of a transcoder carry one prompt to its logits."""
