"""The words of the figures of a comparison."""

CAPTIONS = {
    "test_accuracy": "Test accuracy. Each mark is one seed; a line joins the runs that share a seed, that is initial "
    "weights, splits and batch order. Beside them, the mean with its 95 % interval. Higher is better.",
    "difference": "What changes within a seed: test accuracy minus that of {reference} with the same seed, mean and "
    "95 % interval. Right of the line is better than {reference}.",
    "trace": "Hessian trace of the training loss at the end, an overall measure of sharpness: lower is flatter. "
    "Marks, lines and intervals as above.",
    "trace_against_loss": "Whether flatter runs are better ones: test loss over the Hessian trace, a mark a run. Runs "
    "of one task may line up by method without one causing the other.",
    "train_loss": "Loss on the training labels during training; thin lines are seeds, the thick one is their mean. "
    "Methods that perturb the weights evaluate two gradients a step, so they take half as many steps for the same "
    "budget.",
    "validation_accuracy": "Accuracy on held-out images during training. A curve that falls again is a network that "
    "has begun to fit its training labels by heart.",
    "validation_accuracy_seconds": "The same against time. The wall time of a run is dealt evenly over its gradient "
    "evaluations; it depends on what else the machine did.",
    "test_accuracy_along": "Test accuracy during training. Nothing was chosen by it.",
    "trace_along": "Hessian trace of the training loss during training.",
    "live_trace": "The Hessian trace as the optimizer sees it while it trains, from the gradients it computes anyway. "
    "It is the trace of the loss smoothed by the method's own noise.",
    "sensitivity": "{metric} against {axis}, everything else equal: a dot is a run, the line joins the means over "
    "seeds. {note}",
    "surfaces": "Training loss around the solutions of one seed, along two random directions in which a step of 1 "
    "moves every filter by its own length. One colour scale for all, so that steepness can be compared by eye.",
}
"""What to read off each figure."""

ALTS = {
    "test_accuracy": "Test accuracy of every seed by method on {task}, with means and intervals",
    "difference": "Paired differences in test accuracy to {reference} on {task}, one dot a seed",
    "trace": "Hessian trace of every seed by method on {task}, with means and intervals",
    "trace_against_loss": "Test loss against Hessian trace on {task}, one mark a run, by method",
    "train_loss": "Training loss against gradient evaluations on {task}",
    "validation_accuracy": "Validation accuracy against gradient evaluations on {task}",
    "validation_accuracy_seconds": "Validation accuracy against seconds on {task}",
    "test_accuracy_along": "Test accuracy against gradient evaluations on {task}",
    "trace_along": "Hessian trace against gradient evaluations on {task}",
    "live_trace": "Live Hessian trace against gradient evaluations on {task}",
    "sensitivity": "{metric} against {axis} on {task}, by method",
    "surfaces": "Training loss around the {method} solution on {task}",
}
"""What each figure shows, for those who cannot see it."""
