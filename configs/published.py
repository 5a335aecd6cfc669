"""What did the papers publish? Scores, learning rates and figures that pgjax compares itself to.

PaliGemma 1 (v1): arXiv:2407.07726, table 1. Where that has a test server's score, the score on the
validation split is from arXiv:2412.03555, table 15. "mix", POPE, MMVP, BLEU-4 and RefCOCO's
validation splits at 896 px: the README of big_vision's configs. PaliGemma 2 (3b, 10b, 28b):
arXiv:2412.03555, table 13; DOCCI: its table 6.
"""

# {config: {(the paper's name, evaluator, score): {size: {resolution: (mean, deviation)}}}}, in
# percent as printed: CIDEr is printed times 100. The deviation is over five training runs; None: it
# is not published. An evaluator of AVERAGES is a mean over evaluators.
RESULTS = {
  "activitynet_cap": {
    ("ActivityNet-CAP", "activitynet_captions_mr/eval", "cider"): {
      "v1": {224: (34.6, 0.6)},
      "3b": {224: (34.2, 0.3)},
      "10b": {224: (35.9, 0.5)},
    }
  },
  "activitynet_qa": {
    ("ActivityNet-QA", "activitynet_qa/eval", "acc"): {
      "v1": {224: (50.8, 0.4)},
      "3b": {224: (51.3, 0.2)},
      "10b": {224: (53.2, 0.4)},
    }
  },
  "ai2d": {
    ("AI2D", "ai2d/eval", "acc"): {
      "v1": {224: (72.1, 0.7), 448: (73.3, 0.7)},
      "3b": {224: (74.7, 0.5), 448: (76.0, 0.2)},
      "10b": {224: (83.1, 0.4), 448: (84.4, 0.4)},
      "28b": {224: (83.2, 0.7), 448: (84.6, 0.4)},
    }
  },
  "aokvqa_da": {
    ("AOKVQA-DA (val)", "aokvqa_da/eval", "acc"): {
      "v1": {224: (61.1, None), 448: (65.7, None)},
      "3b": {224: (64.2, 0.5), 448: (67.9, 0.3)},
      "10b": {224: (68.9, 0.3), 448: (70.8, 0.5)},
      "28b": {224: (70.2, 0.2), 448: (71.2, 0.2)},
    },
    ("AOKVQA-DA (test server)", "aokvqa_da/test", "acc"): {
      "v1": {224: (61.9, 0.6), 448: (63.2, 0.5)}
    },
  },
  "aokvqa_mc": {
    ("AOKVQA-MC (val)", "aokvqa_mc/eval", "acc"): {
      "v1": {224: (78.5, None), 448: (80.3, None)},
      "3b": {224: (79.7, 1.0), 448: (82.5, 0.4)},
      "10b": {224: (83.7, 1.1), 448: (85.9, 0.2)},
      "28b": {224: (84.7, 0.8), 448: (87.0, 0.3)},
    },
    ("AOKVQA-MC (test server)", "aokvqa_mc/test", "acc"): {
      "v1": {224: (76.4, 0.4), 448: (76.9, 0.3)}
    },
  },
  "chartqa": {
    ("ChartQA (human)", "chartqa/human/eval", "relaxed_acc"): {
      "v1": {224: (40.0, 0.7), 448: (54.2, 1.1)},
      "3b": {224: (42.0, 0.3), 448: (54.0, 0.6)},
      "10b": {224: (48.4, 1.1), 448: (66.4, 0.5)},
      "28b": {224: (46.8, 0.6), 448: (61.3, 0.6)},
    },
    ("ChartQA (aug)", "chartqa/augmented/eval", "relaxed_acc"): {
      "v1": {224: (74.2, 0.2), 448: (88.5, 0.3)},
      "3b": {224: (74.4, 0.7), 448: (89.2, 0.4)},
      "10b": {224: (74.2, 0.8), 448: (90.1, 0.5)},
      "28b": {224: (68.9, 0.6), 448: (85.1, 0.2)},
    },
  },
  "coco35l": {
    ("COCO-35L (en)", "coco35l/en", "cider"): {
      "v1": {224: (139.2, 0.4), 448: (141.2, 0.6)},
      "3b": {224: (138.4, 0.2), 448: (140.4, 0.4)},
      "10b": {224: (140.8, 0.3), 448: (142.4, 0.4)},
      "28b": {224: (142.4, 0.4), 448: (142.3, 0.8)},
    },
    ("COCO-35L (avg34)", "coco35l/avg34", "cider"): {
      "v1": {224: (113.7, 0.3), 448: (115.8, 0.1)},
      "3b": {224: (113.9, 0.2), 448: (115.8, 0.3)},
      "10b": {224: (115.8, 0.0), 448: (117.2, 0.1)},
      "28b": {224: (116.5, 0.1), 448: (117.2, 0.1)},
    },
    ("XM3600 (en)", "xm3600/en", "cider"): {
      "v1": {224: (78.0, 0.8), 448: (80.0, 0.3)},
      "3b": {224: (79.8, 0.7), 448: (80.3, 0.8)},
      "10b": {224: (80.7, 0.3), 448: (81.5, 0.4)},
      "28b": {224: (81.0, 0.9), 448: (81.0, 0.2)},
    },
    ("XM3600 (avg35)", "xm3600/avg35", "cider"): {
      "v1": {224: (41.9, 0.0), 448: (42.4, 0.1)},
      "3b": {224: (42.8, 0.1), 448: (43.2, 0.1)},
      "10b": {224: (44.5, 0.1), 448: (44.6, 0.1)},
      "28b": {224: (45.2, 0.1), 448: (45.2, 0.1)},
    },
  },
  "cococap": {
    ("COCOcap", "cococap/eval", "cider"): {
      "v1": {224: (141.9, 0.3), 448: (144.6, 0.5)},
      "3b": {224: (141.3, 0.5), 448: (143.4, 0.4)},
      "10b": {224: (143.7, 0.2), 448: (145.0, 0.3)},
      "28b": {224: (144.0, 0.3), 448: (145.2, 0.4)},
    },
    ("NoCaps", "nocaps/eval", "cider"): {
      "v1": {224: (121.7, 0.3), 448: (123.6, 0.7)},
      "3b": {224: (123.1, 0.3), 448: (123.5, 0.3)},
      "10b": {224: (126.3, 0.4), 448: (126.9, 0.1)},
      "28b": {224: (127.1, 0.3), 448: (127.0, 0.2)},
    },
  },
  "docci": {
    ("DOCCI (#char)", "docci/test", "chars"): {
      "v1": {448: (535, None)},
      "3b": {448: (529, None)},
      "10b": {448: (521, None)},
    },
    ("DOCCI (#sent)", "docci/test", "sents"): {
      "v1": {448: (8.9, None)},
      "3b": {448: (7.7, None)},
      "10b": {448: (7.5, None)},
    },
  },
  "docvqa": {
    ("DocVQA (val)", "docvqa/eval", "anls"): {
      "v1": {224: (37.8, None), 448: (74.1, None)},
      "3b": {224: (39.9, 0.3), 448: (73.6, 0.3)},
      "10b": {224: (43.9, 0.6), 448: (76.6, 0.5)},
      "28b": {224: (44.9, 0.4), 448: (76.1, 0.4)},
    },
    ("DocVQA (test server)", "docvqa/test", "anls"): {
      "v1": {224: (43.7, 0.5), 448: (78.0, 0.3), 896: (84.8, None)}
    },
  },
  "gqa": {
    ("GQA", "gqa/testdev_balanced/decode", "acc"): {
      "v1": {224: (65.6, 0.4), 448: (67.0, 0.3)},
      "3b": {224: (66.2, 0.3), 448: (68.1, 0.2)},
      "10b": {224: (67.2, 0.2), 448: (68.3, 0.3)},
      "28b": {224: (67.3, 0.2), 448: (68.3, 0.1)},
    },
    ("xGQA (avg7)", "xgqa/avg7/decode", "acc"): {
      "v1": {224: (57.3, 0.2), 448: (57.9, 0.5)},
      "3b": {224: (58.6, 0.2), 448: (60.4, 0.2)},
      "10b": {224: (61.4, 0.1), 448: (62.6, 0.2)},
      "28b": {224: (61.1, 0.1), 448: (62.1, 0.3)},
    },
  },
  "infovqa": {
    ("InfoVQA (val)", "infovqa/minival", "anls"): {
      "v1": {224: (25.5, None), 448: (37.0, None)},
      "3b": {224: (25.2, 0.2), 448: (37.5, 0.3)},
      "10b": {224: (33.6, 0.2), 448: (47.8, 0.2)},
      "28b": {224: (36.4, 0.1), 448: (46.7, 0.4)},
    },
    ("InfoVQA (test server)", "infovqa/test", "anls"): {
      "v1": {224: (28.5, 0.4), 448: (40.5, 0.3), 896: (47.8, None)}
    },
  },
  "mmvp": {
    ("MMVP (pairs)", "mmvp/test", "acc_pair"): {
      "v1": {224: (47.33, None), 448: (45.33, None)},
      "mix": {224: (46.0, None), 448: (45.33, None)},
    }
  },
  "msrvtt_cap": {
    ("MSRVTT-CAP", "msrvtt/eval", "cider"): {
      "v1": {224: (70.5, 0.9)},
      "3b": {224: (68.5, 1.3)},
      "10b": {224: (72.1, 0.5)},
    }
  },
  "msrvtt_qa": {
    ("MSRVTT-QA", "msrvtt_qa/eval", "acc"): {
      "v1": {224: (50.1, 0.1)},
      "3b": {224: (50.5, 0.1)},
      "10b": {224: (51.9, 0.1)},
    }
  },
  "msvd_qa": {
    ("MSVD-QA", "msvd_qa/eval", "acc"): {
      "v1": {224: (60.2, 0.3)},
      "3b": {224: (61.1, 0.2)},
      "10b": {224: (62.5, 0.2)},
    }
  },
  "nlvr2": {
    ("NLVR2", "nlvr2/test", "acc"): {
      "v1": {224: (90.0, 0.2), 448: (88.9, 0.3)},
      "3b": {224: (91.4, 0.1), 448: (91.6, 0.2)},
      "10b": {224: (93.9, 0.2), 448: (93.7, 0.2)},
      "28b": {224: (94.2, 0.1), 448: (94.1, 0.2)},
    },
    ("MARVL (avg5)", "marvl/avg5", "acc"): {
      "v1": {224: (80.6, 0.3), 448: (76.8, 0.3)},
      "3b": {224: (83.5, 0.2), 448: (82.7, 0.3)},
      "10b": {224: (89.5, 0.2), 448: (89.1, 0.0)},
      "28b": {224: (90.6, 0.2), 448: (89.7, 0.1)},
    },
  },
  "ocrvqa": {
    ("OCR-VQA", "ocrvqa/eval", "acc"): {
      "v1": {224: (72.3, 0.4), 448: (74.6, 0.4), 896: (74.9, None)},
      "3b": {224: (73.4, 0.0), 448: (75.7, 0.1)},
      "10b": {224: (74.7, 0.1), 448: (76.3, 0.1)},
      "28b": {224: (75.3, 0.2), 448: (76.6, 0.1)},
    }
  },
  "okvqa": {
    ("OKVQA", "okvqa/eval", "acc"): {
      "v1": {224: (63.5, 0.3), 448: (63.2, 0.2)},
      "3b": {224: (64.2, 0.1), 448: (64.1, 0.4)},
      "10b": {224: (68.0, 0.1), 448: (68.6, 0.5)},
      "28b": {224: (71.2, 0.2), 448: (70.6, 0.2)},
    }
  },
  "pope": {
    ("POPE (random)", "pope/pope_random", "acc"): {
      "v1": {224: (87.8, None), 448: (88.23, None)},
      "mix": {224: (88.0, None), 448: (89.37, None)},
    },
    ("POPE (popular)", "pope/pope_popular", "acc"): {
      "v1": {224: (85.87, None), 448: (86.77, None)},
      "mix": {224: (86.63, None), 448: (88.4, None)},
    },
    ("POPE (adversarial)", "pope/pope_adversarial", "acc"): {
      "v1": {224: (84.27, None), 448: (85.9, None)},
      "mix": {224: (85.67, None), 448: (87.47, None)},
    },
  },
  "refcoco_seg": {
    ("RefCOCO (val)", "seg/refcoco/val", "miou"): {
      "v1": {224: (73.4, None), 448: (75.6, None), 896: (76.94, None)},
      "3b": {224: (73.4, 0.1), 448: (76.3, 0.1)},
      "10b": {224: (75.9, 0.1), 448: (78.2, 0.1)},
      "28b": {224: (75.0, 0.0), 448: (77.3, 0.1)},
    },
    ("RefCOCO (testA)", "seg/refcoco/testA", "miou"): {
      "v1": {224: (75.7, 0.1), 448: (77.9, 0.1), 896: (78.7, None)},
      "3b": {224: (75.7, 0.2), 448: (78.6, 0.3)},
      "10b": {224: (77.2, 0.1), 448: (79.7, 0.1)},
      "28b": {224: (76.8, 0.1), 448: (79.3, 0.1)},
    },
    ("RefCOCO (testB)", "seg/refcoco/testB", "miou"): {
      "v1": {224: (70.7, 0.2), 448: (72.4, 0.2), 896: (73.9, None)},
      "3b": {224: (71.0, 0.3), 448: (73.5, 0.1)},
      "10b": {224: (74.2, 0.3), 448: (76.2, 0.3)},
      "28b": {224: (73.9, 0.1), 448: (74.8, 0.1)},
    },
    ("RefCOCO+ (val)", "seg/refcocop/val", "miou"): {
      "v1": {224: (68.3, None), 448: (69.8, None), 896: (72.18, None)},
      "3b": {224: (68.6, 0.1), 448: (72.1, 0.3)},
      "10b": {224: (72.0, 0.2), 448: (74.4, 0.1)},
      "28b": {224: (70.3, 0.2), 448: (72.8, 0.1)},
    },
    ("RefCOCO+ (testA)", "seg/refcocop/testA", "miou"): {
      "v1": {224: (71.9, 0.2), 448: (74.2, 0.2), 896: (76.1, None)},
      "3b": {224: (72.7, 0.2), 448: (76.1, 0.2)},
      "10b": {224: (74.7, 0.2), 448: (77.7, 0.2)},
      "28b": {224: (73.6, 0.2), 448: (76.6, 0.1)},
    },
    ("RefCOCO+ (testB)", "seg/refcocop/testB", "miou"): {
      "v1": {224: (64.5, 0.6), 448: (64.5, 0.2), 896: (66.9, None)},
      "3b": {224: (64.2, 0.2), 448: (67.0, 0.3)},
      "10b": {224: (68.4, 0.3), 448: (71.1, 0.2)},
      "28b": {224: (67.1, 0.1), 448: (68.6, 0.1)},
    },
    ("RefCOCOg (val)", "seg/refcocog/val", "miou"): {
      "v1": {224: (67.7, None), 448: (70.1, None), 896: (72.22, None)},
      "3b": {224: (68.3, 0.3), 448: (72.3, 0.2)},
      "10b": {224: (71.4, 0.2), 448: (74.4, 0.1)},
      "28b": {224: (70.5, 0.1), 448: (73.0, 0.1)},
    },
    ("RefCOCOg (test)", "seg/refcocog/test", "miou"): {
      "v1": {224: (68.2, 0.1), 448: (71.0, 0.1), 896: (72.7, None)},
      "3b": {224: (69.0, 0.2), 448: (72.7, 0.1)},
      "10b": {224: (71.9, 0.1), 448: (74.8, 0.1)},
      "28b": {224: (70.7, 0.1), 448: (73.7, 0.1)},
    },
  },
  "rsvqa_hr": {
    ("RSVQA-hr (test)", "rsvqa_hr/test", "acc_avg"): {
      "v1": {224: (92.6, 0.1), 448: (92.8, 0.1)},
      "3b": {224: (92.7, 0.1), 448: (92.8, 0.0)},
      "10b": {224: (92.6, 0.0), 448: (92.8, 0.1)},
      "28b": {224: (92.7, 0.0), 448: (92.8, 0.1)},
    },
    ("RSVQA-hr (test2)", "rsvqa_hr/test2", "acc_avg"): {
      "v1": {224: (90.6, 0.1), 448: (90.5, 0.2)},
      "3b": {224: (90.9, 0.1), 448: (90.7, 0.2)},
      "10b": {224: (90.8, 0.1), 448: (90.7, 0.2)},
      "28b": {224: (90.9, 0.1), 448: (90.8, 0.1)},
    },
  },
  "rsvqa_lr": {
    ("RSVQA-lr", "rsvqa_lr/test", "acc_avg"): {
      "v1": {224: (92.6, 0.3), 448: (93.1, 0.7)},
      "3b": {224: (93.0, 0.4), 448: (92.7, 0.8)},
      "10b": {224: (92.8, 0.6), 448: (93.1, 0.6)},
      "28b": {224: (93.5, 0.2), 448: (93.7, 0.4)},
    }
  },
  "scicap": {
    ("SciCap", "scicap/test", "cider"): {
      "v1": {224: (162.3, 0.7), 448: (181.5, 0.6)},
      "3b": {224: (165.1, 0.5), 448: (183.3, 0.7)},
      "10b": {224: (159.5, 0.7), 448: (177.2, 0.3)},
      "28b": {224: (156.9, 1.0), 448: (172.7, 1.5)},
    },
    ("SciCap (BLEU-4)", "scicap/test", "bleu-4"): {"v1": {224: (19.2, None), 448: (21.1, None)}},
  },
  "science_qa": {
    ("ScienceQA", "science_qa/eval", "acc"): {
      "v1": {224: (95.4, 0.3), 448: (95.9, 0.2)},
      "3b": {224: (96.1, 0.3), 448: (96.2, 0.2)},
      "10b": {224: (98.2, 0.2), 448: (98.5, 0.2)},
      "28b": {224: (98.2, 0.2), 448: (98.6, 0.2)},
    }
  },
  "screen2words": {
    ("Screen2Words", "screen2words/test", "cider"): {
      "v1": {224: (117.6, 0.7), 448: (119.6, 0.7)},
      "3b": {224: (113.3, 0.8), 448: (114.0, 0.5)},
      "10b": {224: (117.8, 0.7), 448: (119.1, 1.9)},
      "28b": {224: (122.8, 0.5), 448: (123.4, 0.8)},
    }
  },
  "stvqa": {
    ("ST-VQA (val)", "stvqa/minival", "anls"): {
      "v1": {224: (61.6, None), 448: (79.7, None)},
      "3b": {224: (61.9, 0.1), 448: (80.5, 0.1)},
      "10b": {224: (64.3, 0.4), 448: (82.0, 0.3)},
      "28b": {224: (65.1, 0.4), 448: (81.8, 0.1)},
    },
    ("ST-VQA (test server)", "stvqa/test", "anls"): {
      "v1": {224: (63.3, 0.5), 448: (81.8, 0.3), 896: (84.4, None)}
    },
  },
  "tallyqa": {
    ("TallyQA (simple)", "tallyqa/eval", "acc/simple"): {
      "v1": {224: (81.7, 0.2), 448: (84.9, 0.1)},
      "3b": {224: (81.8, 0.1), 448: (85.3, 0.1)},
      "10b": {224: (83.2, 0.1), 448: (86.2, 0.1)},
      "28b": {224: (83.4, 0.1), 448: (85.7, 0.1)},
    },
    ("TallyQA (complex)", "tallyqa/eval", "acc/complex"): {
      "v1": {224: (69.6, 0.1), 448: (72.3, 0.2)},
      "3b": {224: (70.3, 0.3), 448: (73.6, 0.2)},
      "10b": {224: (73.4, 0.1), 448: (76.7, 0.3)},
      "28b": {224: (74.2, 0.1), 448: (76.8, 0.2)},
    },
    ("CountBenchQA", "countbenchqa/eval", "acc"): {
      "v1": {224: (81.9, 1.6), 448: (83.1, 2.1)},
      "3b": {224: (81.0, 1.0), 448: (82.0, 1.2)},
      "10b": {224: (84.0, 1.4), 448: (85.3, 1.7)},
      "28b": {224: (86.4, 1.6), 448: (87.4, 1.0)},
    },
  },
  "textcaps": {
    ("TextCaps", "textcaps/eval", "cider"): {
      "v1": {224: (127.5, 1.0), 448: (153.9, 0.5)},
      "3b": {224: (127.5, 0.3), 448: (152.1, 0.3)},
      "10b": {224: (137.9, 0.3), 448: (157.7, 0.7)},
      "28b": {224: (139.9, 0.4), 448: (153.6, 0.5)},
    }
  },
  "textvqa": {
    ("TextVQA (val)", "textvqa/eval", "acc"): {
      "v1": {224: (59.0, None), 448: (74.6, None)},
      "3b": {224: (59.6, 0.3), 448: (75.2, 0.2)},
      "10b": {224: (64.0, 0.3), 448: (76.6, 0.1)},
      "28b": {224: (64.7, 0.2), 448: (76.2, 0.1)},
    },
    ("TextVQA (test server)", "textvqa/test", "acc"): {
      "v1": {224: (55.5, 0.2), 448: (73.2, 0.2), 896: (76.5, None)}
    },
  },
  "vatex_cap": {
    ("VATEX", "vatex/eval", "cider"): {
      "v1": {224: (79.7, 0.4)},
      "3b": {224: (80.8, 0.4)},
      "10b": {224: (82.7, 0.5)},
    }
  },
  "vizwizvqa": {
    ("VizWizVQA (val)", "vizwizvqa/minival", "acc"): {
      "v1": {224: (73.7, None), 448: (75.5, None)},
      "3b": {224: (76.4, 0.4), 448: (77.5, 0.2)},
      "10b": {224: (78.1, 0.4), 448: (78.6, 0.4)},
      "28b": {224: (78.7, 0.2), 448: (78.9, 0.5)},
    },
    ("VizWizVQA (test server)", "vizwizvqa/test", "acc"): {
      "v1": {224: (73.7, 0.2), 448: (75.5, 0.5)}
    },
  },
  "vqav2": {
    ("VQAv2 (minival)", "vqav2/minival", "acc"): {
      "v1": {224: (82.1, None), 448: (84.6, None)},
      "3b": {224: (83.0, 0.2), 448: (84.8, 0.2)},
      "10b": {224: (84.3, 0.2), 448: (85.8, 0.1)},
      "28b": {224: (84.5, 0.1), 448: (85.8, 0.2)},
    },
    ("VQAv2 (test server)", "vqav2/test", "acc"): {"v1": {224: (83.2, 0.4), 448: (85.6, 0.2)}},
  },
  "widgetcap": {
    ("WidgetCap", "widgetcap/eval", "cider"): {
      "v1": {224: (136.1, 1.4), 448: (148.4, 0.3)},
      "3b": {224: (138.1, 0.7), 448: (151.4, 0.8)},
      "10b": {224: (139.8, 1.0), 448: (151.9, 0.4)},
      "28b": {224: (138.8, 0.8), 448: (148.9, 0.7)},
    }
  },
}

# Not in percent.
ABSOLUTE = ("chars", "sents")

# Scores that are unweighted means over evaluators of the config.
LANGUAGES = {
  "coco35l": "ar bn cs da de el en es fa fi fil fr he hi hr hu id it ja ko mi nl no pl pt ro ru sv"
  " sw te th tr uk vi zh",
  "marvl": "id sw ta tr zh",
  "xgqa": "bn de en id ko pt ru zh",
}
_OTHERS = [language for language in LANGUAGES["coco35l"].split() if language != "en"]
AVERAGES = {
  "coco35l/avg34": [f"coco35l/{language}" for language in _OTHERS],
  "xm3600/avg35": [f"xm3600/{language}" for language in [*_OTHERS, "quz"]],
  "marvl/avg5": [f"marvl/test_{language}" for language in LANGUAGES["marvl"].split()],
  "xgqa/avg7/decode": [
    f"xgqa/test_zs_{language}/decode" for language in LANGUAGES["xgqa"].split() if language != "en"
  ],
}

# Scored by the data set's own server: the answers of these splits are not public.
ON_A_SERVER = {
  *("aokvqa_da/test", "aokvqa_mc/test", "docvqa/test", "infovqa/test", "stvqa/test"),
  *("textvqa/test", "vizwizvqa/test", "vqav2/test"),
}

# Scores of models that were trained with `final_split`: on the validation split, or its part, too.
# Those of videos are not documented.
FINAL_SPLIT = {
  *("ai2d/eval", "aokvqa_da/test", "aokvqa_mc/test", "chartqa/augmented/eval"),
  *("chartqa/human/eval", "cococap/eval", "docvqa/test", "gqa/testdev_balanced/decode"),
  *("infovqa/test", "marvl/avg5", "nlvr2/test", "nocaps/eval", "ocrvqa/eval", "okvqa/eval"),
  *("rsvqa_hr/test", "rsvqa_hr/test2", "rsvqa_lr/test", "scicap/test", "science_qa/eval"),
  *("screen2words/test", "stvqa/test", "textcaps/eval", "textvqa/test", "vizwizvqa/test"),
  *("vqav2/test", "widgetcap/eval", "xgqa/avg7/decode"),
}

# Learning rates of PaliGemma 2, the best of arXiv:2412.03555, table 14, at 224 px, which the paper
# also uses at 448; of several rows of a task, the best mean; of equal ones, the lowest.
LEARNING_RATES = {
  "activitynet_cap": {"3b": 3e-6, "10b": 3e-6},
  "activitynet_qa": {"3b": 6e-6, "10b": 6e-6},
  "ai2d": {"3b": 6e-6, "10b": 1e-6, "28b": 3e-6},
  "aokvqa_da": {"3b": 3e-6, "10b": 1e-6, "28b": 6e-7},
  "aokvqa_mc": {"3b": 3e-6, "10b": 3e-7, "28b": 1e-6},
  "chartqa": {"3b": 3e-6, "10b": 1e-6, "28b": 3e-7},
  "coco35l": {"3b": 1e-6, "10b": 6e-7, "28b": 3e-7},
  "cococap": {"3b": 3e-6, "10b": 6e-7, "28b": 6e-7},
  "docvqa": {"3b": 6e-6, "10b": 3e-6, "28b": 3e-6},
  "gqa": {"3b": 3e-6, "10b": 1e-6, "28b": 3e-6},
  "infovqa": {"3b": 3e-6, "10b": 6e-7, "28b": 3e-7},
  "msrvtt_cap": {"3b": 1e-5, "10b": 1e-6},
  "msrvtt_qa": {"3b": 6e-6, "10b": 3e-6},
  "msvd_qa": {"3b": 3e-6, "10b": 1e-6},
  "nlvr2": {"3b": 6e-6, "10b": 1e-6, "28b": 3e-6},
  "ocrvqa": {"3b": 1e-6, "10b": 3e-7, "28b": 3e-7},
  "okvqa": {"3b": 3e-6, "10b": 1e-6, "28b": 1e-6},
  "refcoco_seg": {"3b": 1e-5, "10b": 3e-6, "28b": 1e-6},
  "rsvqa_hr": {"3b": 1e-5, "10b": 6e-6, "28b": 6e-7},
  "rsvqa_lr": {"3b": 3e-6, "10b": 1e-5, "28b": 6e-6},
  "scicap": {"3b": 3e-5, "10b": 3e-5, "28b": 3e-5},
  "science_qa": {"3b": 6e-6, "10b": 1e-6, "28b": 1e-6},
  "screen2words": {"3b": 6e-6, "10b": 1e-6, "28b": 1e-6},
  "stvqa": {"3b": 6e-6, "10b": 3e-6, "28b": 3e-6},
  "tallyqa": {"3b": 1e-5, "10b": 3e-6, "28b": 3e-6},
  "textcaps": {"3b": 1e-6, "10b": 1e-6, "28b": 3e-7},
  "textvqa": {"3b": 3e-6, "10b": 6e-7, "28b": 1e-6},
  "vatex_cap": {"3b": 3e-6, "10b": 3e-6},
  "vizwizvqa": {"3b": 1e-5, "10b": 3e-6, "28b": 3e-6},
  "vqav2": {"3b": 3e-6, "10b": 1e-6, "28b": 6e-7},
  "widgetcap": {"3b": 3e-6, "10b": 1e-6, "28b": 6e-7},
}

# The hub's post on PaliGemma 2: `evaluate --quantize` on TextVQA's validation split, 3B at 224 px.
QUANTIZED_TEXTVQA = {"none": 60.04, "int8": 59.78, "nf4": 58.72}


def of(task, evaluator, size, res):
  """{score: (mean, deviation)} of one evaluator, as pgjax measures it; {} if none is published."""
  scores = {}
  for (_, name, score), by_size in RESULTS.get(task, {}).items():
    mean, deviation = by_size.get(size, {}).get(res, (None, None))
    if name == evaluator and mean is not None:
      unit = 1 if score in ABSOLUTE else 100
      scores[score] = (round(mean / unit, 6), deviation and round(deviation / unit, 6))
  return scores


def learning_rate(task, size, v1):
  """The published learning rate of a size; `v1` is PaliGemma 1's."""
  if size in ("", "v1", "mix") or task not in LEARNING_RATES:
    return v1
  rates = LEARNING_RATES[task]
  return rates.get(size, rates["10b"])  # Videos were not tried with 28b.
