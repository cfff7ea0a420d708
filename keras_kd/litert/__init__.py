"""TFLite files: what is in them, how they run, and how they are made.

The files of this room see a `.tflite` with LiteRT, flatbuffers and NumPy alone, as a device does;
only `converting` starts TensorFlow, in a process of its own.
"""
