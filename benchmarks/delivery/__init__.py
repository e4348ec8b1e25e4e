"""The parts of the delivery benchmark: subscribers, publishers, both servers, a paced model."""
