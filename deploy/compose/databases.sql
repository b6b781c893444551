-- A database for each plane of docker-compose.ha.yml that has several replicas. The image of Postgres runs this once, when it makes its data.
CREATE DATABASE meridian_global;
CREATE DATABASE meridian_zone_1;
