"""Images and annotations: finding them on disk, reading, augmenting, downloading, drawing."""
