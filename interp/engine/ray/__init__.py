"""The engine on Ray: Ray Data for streams, Ray Train for fitting, actors for pools."""
