"""What every fine-tuner shares: devices, optimizers, which weights are trained, and where a training stands.

``trainable.Trainable`` holds the weights, ``course.Course`` what is kept between rounds (PPO keeps its own);
``beside`` what goes on while something else is waited for.
"""
