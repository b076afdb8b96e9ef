"""livtrain: train, predict and evaluate liver and liver-tumor segmentation on livprep stores."""
